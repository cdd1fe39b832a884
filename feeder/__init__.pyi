# What __getattr__ in __init__.py loads, for type checkers: the module itself must not import it.
from feeder import events as events
from feeder.listener import Listener as Listener

__version__: str
