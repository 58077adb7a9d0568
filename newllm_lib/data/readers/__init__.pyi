"""What this package shows; a module is loaded when a name of it is first used."""

from newllm_lib.data.readers.chitchat import ChitChatSource as ChitChatSource
from newllm_lib.data.readers.folder import FolderSource as FolderSource
from newllm_lib.data.readers.hub import HubSource as HubSource
from newllm_lib.data.readers.wikitext import WikiTextSource as WikiTextSource
