"""python main.py: the whole experiment, from the data to the plots.  See compare_models.py."""

import signal
import sys

if __name__ == "__main__":
    try:
        from compare_models import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience must not end in a traceback
        sys.exit(code)
    except KeyboardInterrupt:  # while torch is being imported
        print("interrupted before anything was started", file=sys.stderr)
        sys.exit(130)
