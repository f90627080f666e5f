"""Asyncio pieces, clocks and ids: nothing here knows a word of functions, endpoints or workers."""
