"""feeder: exchange WebSocket JSON in, exact order books kept, sequenced binary UDP multicast out."""

__version__ = "0.1.0"
