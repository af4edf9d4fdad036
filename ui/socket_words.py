"""What the browser of a Streamlit page says over its WebSocket, as `access.watch` needs to know it. Knows no viewer."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState

from access.watch import Said

# What reaches every viewer at once, or the server: nothing that a page's reader asks for
_OPERATORS = frozenset({"clear_cache", "debug_shutdown_runtime"})


class StreamlitWords:
    """See `access.watch.Words`."""

    first_page = bytes(BackMsg(rerun_script=ClientState()).SerializeToString())

    def read(self, message: bytes) -> Said | None:
        try:
            said = BackMsg.FromString(message)
        except DecodeError:
            return None
        kind = said.WhichOneof("type")
        if kind != "rerun_script":
            return Said("operate" if kind in _OPERATORS else "read")
        asked = said.rerun_script
        kept = ClientState(query_string=asked.query_string, page_script_hash=asked.page_script_hash, page_name=asked.page_name)
        kept.context_info.CopyFrom(asked.context_info)
        return Said("read", bytes(BackMsg(rerun_script=kept).SerializeToString()))
