"""python main.py: the whole experiment, from the data to the plots.  See compare_models.py."""

import sys

if __name__ == "__main__":
    try:
        from compare_models import main

        sys.exit(main())
    except KeyboardInterrupt:  # before the command listens to it
        print("interrupted before anything was started", file=sys.stderr)
        sys.exit(130)
