"""Dask, Ray and Celery: the pools that people run, over one PostgreSQL ledger. See `test_pools`."""
