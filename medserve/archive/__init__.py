"""Model archives (`.mar`): read and verified by everybody, built from a checkout."""
