"""Builds what calls of one worker go through: who it is, whom it asks, what it may reach."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName
from flashmesh.routing.addresses import PLAIN_NETWORKS, rules_of
from flashmesh.routing.connecting import CA_FILE, ca_file_of, client_context
from flashmesh.routing.keys import Keys
from flashmesh.routing.registry import TTL, ServiceRegistry, ttl_of
from flashmesh.routing.route import Own
from flashmesh.routing.state_manager import StateManagerClient
from flashmesh.wire.signature import Signer
from flashmesh.worker.calls.caller import WorkerCaller
from flashmesh.worker.calls.network import Network

RESOURCE_NAME: Final = "FLASH_RESOURCE_NAME"
PLATFORM_ID: Final = "RUNPOD_ENDPOINT_ID"


def worker_caller(
    *,
    endpoint: str,
    resource_name: str,
    config: ResourceConfig,
    declared: frozenset[str],
    manifest: Path,
    socket_path: Path,
    link: str,
    written_name: Callable[[str], str],
    signer: Signer | None,
    token_file: str | None,
    deployed: bool,
    environ: Mapping[str, str],
) -> WorkerCaller:
    """The Caller of a worker.

    Args:
        resource_name: its name in the manifest; empty: as FLASH_RESOURCE_NAME says, else the endpoint's.
        declared: function and class ids of this endpoint, as written.
        manifest: the file that the session or this machine's server writes.
        socket_path: the endpoint's own; its neighbours are the peers of this machine, and what a State Manager told is
            kept beside it.
        deployed: it is no session's: what the session's file does not say, nobody else knows, whatever the developer's
            environment names.
        token_file: holds what calls are shown with; None: FLASH_TOKEN, if that is set.
    Raises:
        SettingsError, AddressRefused: an environment variable has a value that cannot be used.
    """
    own = Own(
        EndpointName(endpoint),
        resource_name or environ.get(RESOURCE_NAME, "").strip() or endpoint,
        environ.get(PLATFORM_ID, "").strip(),
    )
    tls = partial(client_context, ca_file_of(environ.get(CA_FILE)))
    rules = rules_of(environ.get(PLAIN_NETWORKS, ""), sockets=os.fspath(socket_path.parent))
    keys = Keys(environ, token_file=token_file or "")
    registry = ServiceRegistry(
        manifest,
        own=own,
        rules=rules,
        state=StateManagerClient.of(environ, endpoint=endpoint, keys=keys) if deployed else None,
        kept=socket_path.with_suffix(".manifest.json"),
        served=declared,
        ttl_s=ttl_of(environ.get(TTL)),
    )
    return WorkerCaller(
        own=own.chain_name,
        config=config,
        declared=declared,
        registry=registry,
        keys=keys,
        network=Network(rules, make_context=tls),
        written_name=written_name,
        signer=signer,
        link=link,
        environ=environ,
    )
