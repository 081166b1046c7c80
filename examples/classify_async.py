"""Classify images with the Python client for asyncio.

python examples/classify_async.py ADDRESS MODEL FILE...
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from medserve.client import AsyncClient


async def main(address: str, model: str, paths: list[Path]) -> None:
    """Send all files in one call and print what each of them shows."""
    async with AsyncClient(address) as client:
        for path, result in zip(paths, await client.classify(model, paths), strict=True):
            if (found := result.result) is not None:
                print(f"{path.name} {found.label} {found.probability:.4f}")
            elif (error := result.error) is not None:
                print(f"{path.name} {error.code}: {error.message}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], [Path(each) for each in sys.argv[3:]]))
