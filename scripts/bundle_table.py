"""Write the table that says which MONAI bundles of a folder can be imported, and why others cannot.

python -m scripts.bundle_table FOLDER --source 'Project-MONAI/model-zoo at dfae206'

Configurations alone decide: weights are not looked at, so a checkout without them will do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from medserve.errors import ConfigError
from medserve.importing.bundle import read_bundle
from medserve.spec import ModelSpec
from medserve.spec.volumes import Placement, Restored

__all__ = ["main", "table"]

_PAGE = Path("docs/build/import-bundle.md")
_START, _END = "<!-- bundles: start -->\n", "<!-- bundles: end -->\n"
_REMEDY = "; a bundle with it cannot be imported"


def table(folder: Path, source: str) -> str:
    """Return the table in Markdown, a row for each bundle of a folder, by name."""
    rows = [
        (each.name, *_verdict(each))
        for each in sorted(folder.iterdir())
        if (each / "configs" / "metadata.json").is_file()
    ]
    count = sum(verdict == "yes" for _, verdict, _ in rows)
    lines = [
        f"{count} of {len(rows)} bundles of {source} can be imported:",
        "",
        "| bundle | can be imported | how, or why not |",
        "|---|---|---|",
        *(f"| `{name}` | {verdict} | {why} |" for name, verdict, why in rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Replace the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="one bundle in each of its folders")
    parser.add_argument("--source", required=True, help="of the folder, with its commit")
    parser.add_argument("--page", type=Path, default=_PAGE)
    chosen = parser.parse_args(arguments)
    text = chosen.page.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    written = f"{before}{_START}{table(chosen.folder, chosen.source)}{_END}{after}"
    chosen.page.write_text(written, encoding="utf-8")


def _verdict(bundle: Path) -> tuple[str, str]:
    try:
        source = read_bundle(bundle, "model", with_weights=False)
        volume = ModelSpec.from_mapping(source.config("1.0", "onnxruntime")).volume
    except ConfigError as error:
        told = str(error).removeprefix("configs/").removesuffix(_REMEDY)
        return "no", told.replace("|", "\\|").replace(str(bundle), bundle.name)
    assert volume is not None
    seen = "planes" if len(source.size) == 2 else "windows"
    is_whole = volume.blending.placement is Placement.WHOLE
    notes = [f"{' x '.join(map(str, source.size))} {'alone' if is_whole else seen}"]
    if isinstance(source.network, nn.Identity):
        notes.append("network from `models/model.ts`")
    if volume.restored is Restored.LABELS and volume.resampling.inverse_order:
        notes.append("MONAI writes interpolated labels, here the nearest one")
    return "yes", "; ".join(notes)


if __name__ == "__main__":
    main()
