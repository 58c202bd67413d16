"""Programs that more than one test runs in a fresh interpreter."""

FREEZES = "import signal; signal.pause()"

# prints the pid of a child that it leaves, in a session of its own
LEAVES_ORPHAN = f"""
import subprocess, sys
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen([sys.executable, "-c", {FREEZES!r}], start_new_session=True, **quiet)
print(child.pid)
"""
