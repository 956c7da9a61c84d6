"""aiokafka's errors as those of a source."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import aiokafka.errors as kafka

from ...errors import SourceError, SourceRefused, SourceUnavailable

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
    ssl.SSLCertVerificationError,
)


@contextmanager
def told() -> Iterator[None]:
    """Raises SourceUnavailable and SourceRefused for them, and for a time that is up."""
    try:
        yield
    except SourceError:
        raise
    except TimeoutError:
        raise SourceUnavailable("Kafka does not answer") from None
    except REFUSED as error:
        raise SourceRefused(f"Kafka refuses: {_shown(error)}") from None
    except (kafka.KafkaError, OSError) as error:
        raise SourceUnavailable(f"Kafka: {_shown(error)}") from None
    except UnicodeDecodeError:
        raise SourceRefused("a record has a header whose name is not UTF-8; no client can read what is in a batch with it") from None


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
