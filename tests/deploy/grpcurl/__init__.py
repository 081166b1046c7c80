"""The commands of docs/call/grpcurl.md and scripts/smoke_grpcurl.sh, against real servers."""
