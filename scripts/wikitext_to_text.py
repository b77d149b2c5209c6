"""A WikiText split in Hugging Face's Parquet -> the text file it was made from.

Usage: wikitext_to_text.py FILE.parquet OUT.txt
"""

import argparse
from pathlib import Path

import duckdb


def read_lines(parquet: Path) -> list[str]:
    """The rows in file order. The Parquet stores the original's blank lines, " \\n", as empty strings."""
    rows = duckdb.execute("SELECT text FROM read_parquet(?)", [str(parquet)]).fetchall()
    return [text or " \n" for (text,) in rows]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parquet", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.write_text("".join(read_lines(args.parquet)), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
