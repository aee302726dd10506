"""A KV connector whose finds are the test's word: the scheduler's side of P/D transfer and of KV offloading."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata


class PlayedConnector(KVConnectorBase_V1):
    """Loads are asynchronous: a request waits with its blocks until the test says that its KV has come."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.has: dict[str, int] = {}
        """Tokens of a request's prompt that can be loaded."""
        self.undecided: set[str] = set()
        """Requests for which it cannot say yet what it has."""
        self.keeps: set[str] = set()
        """Requests whose blocks it keeps after their end, until they are sent."""
        self.loading: dict[str, list[int]] = {}
        """Loads on their way: the blocks they go into."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if request.request_id in self.undecided:
            return None, False
        more = self.has.get(request.request_id, 0) - num_computed_tokens
        return (more, True) if more > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            self.loading[request.request_id] = list(blocks.get_block_ids()[0])

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return request.request_id in self.keeps, None

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    # the worker's side, which nobody asks here
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...
    def wait_for_save(self) -> None: ...
