"""The version of this package. (``routeweiler_sync.__version__`` is that of `requests`, for programs that ask for it.)"""

VERSION = "0.1.0"
