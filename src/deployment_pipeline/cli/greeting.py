"""What a first try prints: where it serves, and commands that work."""

from collections.abc import Mapping
from pathlib import Path

from deployment_pipeline.edge.listeners import Listener, shown

SERVICE = "dp.v1.DeploymentPipeline"

HEAD = """\
deployment-pipeline serves gRPC on {listen}
  postgres  {postgres}
  redis     {redis}

Embedded stores keep their data in {data_dir}/ (`make reset` starts from scratch); never use them in
production.
"""
OPEN = """\
NOBODY IS ASKED WHO THEY ARE: whoever reaches this address may do everything. `make run-secure` serves over
TLS, to callers who have a token.

Try it from another terminal, in this folder:

  export PATH="$PWD/.venv/bin:$PATH"
"""
SECURE = """\
Connections are encrypted, and callers need a token. {folder}/ has ca.pem (the CA to trust), token (yours:
it may do everything), and grants.toml and tokens.toml, which you can edit while it runs.

Try it from another terminal, in this folder:

  export PATH="$PWD/.venv/bin:$PATH"
  TOKEN="$(cat {folder}/token)"
"""
CALLS = {
    "CreatePipeline": '{"name": "shop", "stages": ["build", "test", "staging", "deploy"]}',
    "TriggerDeployment": '{"pipeline_name": "shop", "version": "1.0.0", "request_id": "release-1"}',
    "GetHistory": '{"pipeline_name": "shop"}',
}
BUF = "  buf curl --protocol grpc {how} \\\n    {url}/{service}/{method} -d '{request}'\n"
GRPCURL = """\
or, if you have grpcurl:

  grpcurl {how} -d '{request}' \\
    {address} {service}/{method}
"""
END = "\nCtrl-C stops it.\n\n"


def text(listener: Listener, stores: Mapping[str, str], data_dir: Path, secure: Path | None) -> str:
    """secure: the folder with what callers need; None if they need nothing."""
    address = listener.address
    if secure:
        identity = '-H "authorization: Bearer $TOKEN"'
        buf, grpcurl = f"--cacert {secure}/ca.pem {identity}", f"-cacert {secure}/ca.pem {identity}"
        opening, url = SECURE.format(folder=secure), f"https://{address}"
    else:
        buf, grpcurl = "--http2-prior-knowledge", "-plaintext"
        opening, url = OPEN, f"http://{address}"
    calls = [
        BUF.format(how=buf, url=url, service=SERVICE, method=method, request=request)
        for method, request in CALLS.items()
    ]
    method, request = next(reversed(CALLS.items()))
    again = GRPCURL.format(how=grpcurl, address=address, service=SERVICE, method=method, request=request)
    head = HEAD.format(listen=shown([listener]), data_dir=data_dir, **stores)
    return "\n".join([head, opening]) + "".join(calls) + again + END
