"""`bench`: every router of ours beside every peer that can be imported, judged, then timed.

The command line is in `command`; neither it nor `--list` needs torch.
"""
