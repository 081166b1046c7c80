"""The one way of a request through the gateway, whatever face it came in by."""
