"""``python -m chatd`` is the same as ``chatd``."""

from chatd.cli import main

raise SystemExit(main())
