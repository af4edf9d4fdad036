"""What can go wrong without internet, and the cure of each: the closed list of codes that `offline-check` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CURES = {
    "outbound_connection": "Serve what it fetches from inside the network, or switch off the feature that fetches it.",
    "dns_lookup": "Name the host by its address or an inside name, or switch off the feature that looks it up.",
    "hub_call": "Download the model before the move and set HF_HUB_OFFLINE=1; name a folder where the hub is not needed.",
    "outbound_unseen": "A C library or another program made it: look at the child processes that are listed.",
    "model_not_cached": "Download the model where there is internet, or give the path of its folder.",
    "model_shard_missing": "Download or copy the model again, whole.",
    "model_tokenizer_missing": "Copy the tokenizer's files (tokenizer.json, or the vocabulary) beside the weights.",
    "model_config_missing": "Download or copy the model again, whole.",
    "model_ref_missing": "Download the model again: without refs/main a look-up by name finds nothing offline.",
    "model_incomplete": "Finish the download, or delete the unfinished file and download again.",
    "trust_remote_code": "Use a model that transformers supports itself, or copy its code into the model's folder and review it.",
    "download_call": "Fetch it before the move and load it from a file, or switch off what calls it.",
    "proxy_set": "Unset it for the services over there, or show that the proxy reaches nothing but the network inside.",
    "telemetry": "Switch it off as said, in the file or by the environment variable.",
    "remote_asset": "Serve the script, style or image from the program itself.",
    "remote_font": "Ship the font's file and refer to it by a relative path, or use a system font.",
    "csp_missing": "Send a content-security-policy that allows nothing but the page's own host.",
    "offline_variable_unset": "Set it to 1 in .env or the environment of every service.",
    "public_endpoint": "Point the setting at a service inside the network.",
    "app_not_started": "Start the app by hand and read its log.",
    "query_not_answered": "Read the error; without network every service that the query needs must be on this machine.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that would fail, or call out, without internet. `where` is file:line, a setting, a model or a stack."""

    code: str
    what: str
    where: str = ""
    stack: tuple[str, ...] = ()

    @property
    def cure(self) -> str:
        return CURES[self.code]

    def listed(self) -> dict[str, Any]:
        return {**asdict(self), "stack": list(self.stack), "cure": self.cure}
