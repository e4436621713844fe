"""``dualpath dashboard``: Streamlit's server with our settings, on this machine unless asked."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
from pathlib import Path

from app import plan_view as view
from app.output import say
from dualpath_model.errors import InputError

_MOST_UPLOAD_MB = 100


def serve(address: str, port: int, *, browser: bool) -> None:
    """Serve until Ctrl-C. Raises InputError, one sentence, if that cannot begin."""
    check(address, port)
    os.environ.setdefault("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false")
    from streamlit.web import bootstrap

    options = {
        "server_address": address,
        "server_port": port,
        "server_headless": not browser,
        "server_fileWatcherType": "none",
        "server_maxUploadSize": _MOST_UPLOAD_MB,
        "server_enableStaticServing": False,
        "browser_gatherUsageStats": False,
        "browser_serverAddress": _shown(address),
        "client_toolbarMode": "minimal",
        "client_showErrorDetails": "none",
        "global_developmentMode": False,
        "runner_magicEnabled": False,
        # A collection after every move takes half of its time; Python's own suffices.
        "runner_postScriptGC": False,
        "theme_light_primaryColor": view.DUAL_PATH,
        "theme_dark_primaryColor": "#56B4E9",
    }
    bootstrap.load_config_options(options)
    host = _shown(address)
    say(f"dashboard at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
    script = Path(__file__).parent / "main.py"
    bootstrap.run(str(script), is_hello=False, args=[], flag_options=options)


def check(address: str, port: int) -> None:
    """Raise InputError if Streamlit is missing or the address cannot be listened on."""
    if importlib.util.find_spec("streamlit") is None:
        raise InputError(
            "the dashboard needs streamlit, which is not installed; install it with "
            "pip install 'dualpath-model[dashboard]'"
        )
    try:
        ipaddress.ip_address(address)
    except ValueError:
        if address != "localhost":
            raise InputError(
                f"address '{address}' is no IP address; give one of this machine's, such as 127.0.0.1, "
                f"or 0.0.0.0 for all"
            ) from None
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {address} cannot be listened on ({error.strerror}); choose another "
                f"with --port or --address"
            ) from None


def _shown(address: str) -> str:
    """Return the address for a browser of this machine."""
    return "localhost" if address in ("0.0.0.0", "::") else address
