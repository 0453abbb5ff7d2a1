"""python main.py: the whole experiment, from the data to the plots.  See compare_models.py."""

import sys

from compare_models import main

if __name__ == "__main__":
    sys.exit(main())
