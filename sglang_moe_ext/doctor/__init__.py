"""`doctor`: is the plugin live beside this SGLang, what would serve which model, and why."""

from sglang_moe_ext.doctor.report import run

__all__ = ["run"]
