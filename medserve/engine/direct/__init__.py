"""The direct engine: worker processes of this process run the archives, without TorchServe."""
