"""What every test may count on."""

import signal

from hypothesis import settings

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is a matter of the machine and of what else it does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
