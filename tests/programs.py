"""Programs that more than one test runs in a fresh interpreter."""

WAITS_FOREVER = "import signal; signal.pause()"

# Print the pid of a child that outlives this program, in a session of its own.
LEAVES_ORPHAN = f"""
import subprocess, sys
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen([sys.executable, "-c", {WAITS_FOREVER!r}], start_new_session=True, **quiet)
print(child.pid)
"""
