"""The commands of docs/grpcurl.md and scripts/smoke_grpcurl.sh, against real servers."""
