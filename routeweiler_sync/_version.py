"""The version of this package. (``routeweiler_sync.__version__`` is that of `requests`, for programs that ask it for one.)"""

VERSION = "0.1.0"
