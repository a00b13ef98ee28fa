"""An HTTP service on an `Engine`: `ctd-engine serve`. Needs the extra "serve"."""
