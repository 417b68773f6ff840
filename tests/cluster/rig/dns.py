"""The cluster's DNS: `python -m rig.dns KUBECONFIG ADDRESS`.

It answers for Services (their address, or every endpoint when they are headless), for the host names of endpoints
and for pods by address: what Ray, StatefulSets and people ask for. CoreDNS would do it too, at the price of one more
program to build for a minute and a half before the first test.
"""

from __future__ import annotations

import ipaddress
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer
from kubernetes import client, config, watch

DOMAIN = "cluster.local"

_TTL_SECONDS = 2
_SECONDS_BETWEEN_TRIES = 0.5
_WATCH_SECONDS = 300

Key = tuple[str, str]


class Records:
    """What the API server knows of Services and their endpoints, as plain objects, kept current by two watches."""

    def __init__(self) -> None:
        self.services: dict[Key, Mapping[str, Any]] = {}
        self.slices: dict[Key, Mapping[str, Any]] = {}

    def addresses(self, name: str) -> list[str] | None:
        """The IPv4 addresses of `name` (lower case, no dot at the end), or None where nothing has that name."""
        labels = name.removesuffix(f".{DOMAIN}").split(".")
        if not name.endswith(f".{DOMAIN}"):
            return None
        if labels[-1] == "pod" and len(labels) == 3:
            return _written_out(labels[0])
        if labels[-1] != "svc" or len(labels) not in (3, 4):
            return None
        *host, service, namespace, _ = labels
        found = self.services.get((namespace, service))
        if found is None:
            return None
        if host:
            return self._endpoints(namespace, service, host=host[0]) or None
        address = found["spec"].get("clusterIP")
        return self._endpoints(namespace, service) if address in (None, "None", "") else [address]

    def _endpoints(self, namespace: str, service: str, *, host: str | None = None) -> list[str]:
        return [
            address
            for (place, _), part in list(self.slices.items())
            if place == namespace and part["metadata"]["labels"].get("kubernetes.io/service-name") == service
            for endpoint in part.get("endpoints") or ()
            if (endpoint.get("conditions") or {}).get("ready", True) is not False
            if host is None or endpoint.get("hostname") == host
            for address in endpoint["addresses"]
        ]


def _written_out(label: str) -> list[str] | None:
    """The address that a pod's name `10-0-0-7` is made of."""
    try:
        return [str(ipaddress.IPv4Address(label.replace("-", ".")))]
    except ValueError:
        return None


class Resolver(BaseResolver):  # type: ignore[misc]  # dnslib has no types
    """Answers from `Records`: addresses for A, an empty answer for any other question about a known name."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def resolve(self, request: DNSRecord, _handler: object) -> DNSRecord:
        """The reply to one question."""
        reply, asked = request.reply(), request.q.qname
        addresses = self._records.addresses(str(asked).rstrip(".").lower())
        if addresses is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            for address in addresses:
                reply.add_answer(RR(asked, QTYPE.A, ttl=_TTL_SECONDS, rdata=A(address)))
        return reply


def follow(list_all: Callable[..., Any], store: dict[Key, Mapping[str, Any]], api: client.ApiClient) -> None:
    """Keep `store` equal to what `list_all` lists, for ever; the API server may come and go."""

    def plain(item: object) -> tuple[Key, Mapping[str, Any]]:
        content: Mapping[str, Any] = api.sanitize_for_serialization(item)
        return (content["metadata"]["namespace"], content["metadata"]["name"]), content

    while True:
        try:
            listed = list_all()
            current = dict(map(plain, listed.items))
            for gone in store.keys() - current.keys():
                del store[gone]
            store.update(current)
            version = listed.metadata.resource_version
            for event in watch.Watch().stream(
                list_all, resource_version=version, timeout_seconds=_WATCH_SECONDS
            ):
                key, content = plain(event["object"])
                if event["type"] == "DELETED":
                    store.pop(key, None)
                else:
                    store[key] = content
        except Exception as error:  # whatever a broken connection raises, the remedy is to list again
            print(f"listing again after {type(error).__name__}: {error}", flush=True)
            time.sleep(_SECONDS_BETWEEN_TRIES)


def serve(kubeconfig: Path, address: str) -> None:
    """Answer on port 53 of `address`, by UDP and TCP, until killed."""
    config.load_kube_config(config_file=str(kubeconfig))
    api, records = client.ApiClient(), Records()
    followed: Sequence[tuple[Callable[..., Any], dict[Key, Mapping[str, Any]]]] = (
        (client.CoreV1Api(api).list_service_for_all_namespaces, records.services),
        (client.DiscoveryV1Api(api).list_endpoint_slice_for_all_namespaces, records.slices),
    )
    for list_all, store in followed:
        threading.Thread(target=follow, args=(list_all, store, api), daemon=True).start()
    servers = [
        DNSServer(Resolver(records), address=address, port=53, tcp=tcp, logger=DNSLogger("-request,-reply"))
        for tcp in (True, False)
    ]
    servers[0].start_thread()
    print("ready", flush=True)
    servers[1].start()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
