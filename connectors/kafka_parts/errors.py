"""aiokafka's errors as those of a source, or of a sink."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import aiokafka.errors as kafka

from ...errors import FaasError, SinkError, SinkRefused, SinkUnavailable, SourceError, SourceRefused, SourceUnavailable


class Side(NamedTuple):
    """What errors are called on one side of the bus."""

    error: type[FaasError]
    unavailable: type[FaasError]
    refused: type[FaasError]


SOURCE = Side(SourceError, SourceUnavailable, SourceRefused)
SINK = Side(SinkError, SinkUnavailable, SinkRefused)

REFUSED = (  # what an operator must mend
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.UnknownTopicOrPartitionError,
    kafka.InvalidTopicError,
    kafka.InvalidGroupIdError,
    kafka.InvalidSessionTimeoutError,
    kafka.InconsistentGroupProtocolError,
    kafka.IncompatibleBrokerVersion,
    kafka.UnsupportedVersionError,
    kafka.UnsupportedCodecError,
)


@contextmanager
def told(side: Side = SOURCE) -> Iterator[None]:
    """Raises the side's errors for them, and for a time that is up."""
    try:
        yield
    except side.error:
        raise
    except TimeoutError:
        raise side.unavailable("Kafka does not answer") from None
    except REFUSED as error:
        raise side.refused(f"Kafka refuses: {shown(error)}") from None
    except (kafka.KafkaError, OSError) as error:
        raise side.unavailable(f"Kafka: {shown(error)}") from None
    except UnicodeDecodeError:
        raise side.refused("a record has a header whose name is not UTF-8; no client can read what is in a batch with it") from None


def shown(error: BaseException) -> str:
    name, text = type(error).__name__, str(error)
    return (text if name in text else f"{name}: {text}")[:300]
