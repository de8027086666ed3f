"""A throw-away certificate authority, made anew for every test run."""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PASSWORD = "changeit"
"""Protects the PKCS12 files, which Java does not read without one."""


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, in the forms that programs ask for."""

    cert: Path
    key: Path
    both: Path  # key and certificate in one PEM file: what Kafka loads as a keystore
    pkcs12: Path


@dataclass(frozen=True)
class Certificates:
    """All that one TLS test needs."""

    ca: Path
    wrong_ca: Path  # signed nothing here: whoever trusts only it must refuse the server
    server: Identity
    client: Identity

    def context(self, *, wrong_ca: bool = False, with_client: bool = False) -> ssl.SSLContext:
        """A client's settings, trusting our authority (or the wrong one)."""
        context = ssl.create_default_context(cafile=self.wrong_ca if wrong_ca else self.ca)
        if with_client:
            context.load_cert_chain(self.client.cert, self.client.key)
        return context


def make_certificates(directory: Path) -> Certificates:
    """Write a new authority with a server and a client certificate into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = _Authority("Dispytch tests")
    wrong_ca = directory / "wrong-ca.pem"
    wrong_ca.write_bytes(_Authority("Somebody else").pem)
    ca = directory / "ca.pem"
    ca.write_bytes(authority.pem)
    return Certificates(
        ca=ca,
        wrong_ca=wrong_ca,
        server=authority.issue(directory, "server", ExtendedKeyUsageOID.SERVER_AUTH),
        client=authority.issue(directory, "client", ExtendedKeyUsageOID.CLIENT_AUTH),
    )


class _Authority:
    """Signs certificates for one day."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = _key_usage(signs_certificates=True)
        self._cert = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self._cert.public_bytes(serialization.Encoding.PEM)

    def issue(self, directory: Path, name: str, purpose: x509.ObjectIdentifier) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        hosts = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
        cert = (
            self._builder(subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return self._write(directory, name, key, cert)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        """The parts that every certificate has; strict verifiers ask for both key identifiers."""
        now = dt.datetime.now(dt.UTC)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(issuer_key, critical=False)
        )

    def _write(
        self, directory: Path, name: str, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate
    ) -> Identity:
        files = Identity(
            cert=directory / f"{name}-cert.pem",
            key=directory / f"{name}-key.pem",
            both=directory / f"{name}.pem",
            pkcs12=directory / f"{name}.p12",
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,  # the only one Kafka reads
            serialization.NoEncryption(),
        )
        cert_pem = cert.public_bytes(serialization.Encoding.PEM)
        files.key.write_bytes(key_pem)
        files.cert.write_bytes(cert_pem)
        files.both.write_bytes(key_pem + cert_pem + self.pem)
        secret = serialization.BestAvailableEncryption(PASSWORD.encode())
        bundle = pkcs12.serialize_key_and_certificates(
            name.encode(), key, cert, [self._cert], secret
        )
        files.pkcs12.write_bytes(bundle)
        return files


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
