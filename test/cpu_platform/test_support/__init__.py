"""What several test files share. Installed, because each of them also runs as a script."""
