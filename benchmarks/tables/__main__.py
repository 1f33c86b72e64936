"""`python -m benchmarks.tables`."""

import argparse
import sys

from benchmarks import pictures, tables


def main() -> None:
    """Writes or checks the pages."""
    parser = argparse.ArgumentParser(description=tables.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    if not check:
        pictures.draw_tables(only_stale=True)
    stale = []
    for page in tables.pages():
        new = tables.whole(page)
        if new != page.read_text():
            stale.append(str(page.relative_to(tables.ROOT)))
            if not check:
                page.write_text(new)
    wrong = pictures.problems(tables.pages())
    print(("differ from their CSV: " if check else "rewritten: ") + (", ".join(stale) or "none"))
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(int((check and bool(stale)) or bool(wrong)))


main()
