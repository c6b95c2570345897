"""The payment protocols: bytes and text go in, frozen values come out. Pure: no I/O, no clock, no money."""
