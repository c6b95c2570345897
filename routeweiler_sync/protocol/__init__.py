"""The protocols, pure: bytes and text in, frozen values out. No I/O, no clock, no money."""
