"""Generated gRPC code of `protos/medserve/v1/`; made by `scripts/protos.py`, never edited."""
