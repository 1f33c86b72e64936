"""Tables that people write: CSV files out of spreadsheets."""

import codecs
import csv
import io
from collections.abc import Collection
from pathlib import Path

from framework.errors import DataError


def read_table(path: Path, columns: Collection[str], more: Collection[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV, with the habits of spreadsheets: UTF-8 with or without a mark, UTF-16 with one, `,`, `;` or
    tabs, blanks.

    Args:
        path: the file.
        columns: names that it must have; it is read whatever their case.
        more: names that it may have, for the message.

    Returns:
        a mapping of what stands in each row; empty rows too, so that they can be counted.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    needs = f"columns {' and '.join(columns)}" + (f" (and {', '.join(more)})" if more else "")
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        header = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=header.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        names = [name.strip().lower() for name in rows[0]]
        if not set(columns) <= set(names):
            raise KeyError(f"it has {', '.join(names)}")
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, IndexError) as error:
        raise DataError(f"data.split_file: {path} cannot be read as a CSV with {needs} ({error})") from error
    return [{k: v.strip() for k, v in zip(names, row, strict=False)} for row in rows[1:]]
