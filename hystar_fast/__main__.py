"""``python -m hystar_fast`` is the command ``hystar-fast``."""

from hystar_fast.cli.main import app

app(prog_name="hystar-fast")
