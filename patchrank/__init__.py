from pathlib import Path as _P
__path__.append(str(_P(__file__).resolve().parent.parent))
