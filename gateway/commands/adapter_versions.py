"""`lorikeet adapters replace | versions | point | rollback`: the life of an adapter under one name."""

from typing import Annotated, Any

import typer

from gateway.commands.adapters import FILES, Finetune, Folder, check_files, described, path_of, send_file
from gateway.commands.api import AccountId, Api, Public, Token, Url, open_api
from gateway.commands.options import AsJson, CommandFailed, Config, DataDir, print_json, print_rows

Alias = Annotated[str, typer.Option("--alias", help="Which alias; `default` is the bare name.")]


def replace(
    finetune: Finetune,
    folder: Folder,
    stage: Annotated[
        bool, typer.Option("--stage", help="Keep it beside the current version; nobody gets it yet.")
    ] = False,
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Upload a new version under the same name and id. Requests under way end on the version they began with."""
    check_files(folder)
    with open_api(config, data_dir, url, account, token, public) as api:
        number = api.result("POST", f"{path_of(finetune)}/versions", json={"activate": not stage})["version"]
        path = f"{path_of(finetune)}/versions/{number}"
        try:
            for file_name in FILES:
                send_file(api, f"{path}/finetune-assets", folder / file_name)
        except CommandFailed:
            api.call("DELETE", path)
            raise
        details = api.result("GET", path)
    if as_json:
        print_json(details)
    else:
        now = "staged" if stage else "what the name means now"
        print(f"version {number} of {finetune} is {details['status']}, {now}: rank {details['rank']}")


def versions(
    finetune: Finetune,
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """List the versions that are kept, newest first."""
    with open_api(config, data_dir, url, account, token, public) as api:
        found = list(_pages(api, f"{path_of(finetune)}/versions"))
    if as_json:
        print_json(found)
        return
    rows = [
        [str(v["version"]), v["status"], ", ".join(v["aliases"]), str(v["requests"]), v["last_used_at"] or "",
         v["created_at"], v["digest"] or ""]
        for v in found
    ]  # fmt: skip
    print_rows(
        f"versions of {finetune}",
        ("version", "status", "aliases", "requests", "last used", "created", "digest"),
        rows,
    )


def point(
    finetune: Finetune,
    version: Annotated[int, typer.Option(help="The version that the alias shall mean.")],
    alias: Alias = "default",
    canary: Annotated[int | None, typer.Option(help="A second version, for a part of the sessions.")] = None,
    percent: Annotated[float | None, typer.Option(help="How many of 100 sessions get the canary.")] = None,
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Say what a name or an alias means: one version, or a split between two."""
    if (canary is None) != (percent is None):
        raise CommandFailed("--canary and --percent belong together: give both or neither", 2)
    body: dict[str, Any] = {"version": version}
    if canary is not None:
        body["canary"] = {"version": canary, "percent": percent}
    with open_api(config, data_dir, url, account, token, public) as api:
        pointer = api.result("PUT", f"{path_of(finetune)}/aliases/{alias}", json=body)
    if as_json:
        print_json(pointer)
    else:
        print(f"{finetune if alias == 'default' else f'{finetune}@{alias}'} means {described(pointer)}")


def rollback(
    finetune: Finetune,
    to: Annotated[int | None, typer.Option("--to", help="Version; default: the ready one before the current.")] = None,
    alias: Alias = "default",
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier version; it ends a split."""
    with open_api(config, data_dir, url, account, token, public) as api:
        details = api.result("GET", path_of(finetune))
        now = details["aliases"].get(alias)
        if now is None:
            raise CommandFailed(f"{finetune} has no alias {alias!r}")
        earlier = [v["version"] for v in details["versions"]
                   if v["status"] == "ready" and v["version"] < now["version"]]  # fmt: skip
        if to is None and not earlier:
            raise CommandFailed(f"no version before {now['version']} is kept; `lorikeet adapters versions` lists them")
        chosen = max(earlier) if to is None else to
        pointer = api.result("PUT", f"{path_of(finetune)}/aliases/{alias}", json={"version": chosen})
    if as_json:
        print_json(pointer)
    else:
        print(f"{finetune} is back at version {chosen} (it was {now['version']})")


def _pages(api: Api, path: str) -> Any:
    """Every item of a paged list."""
    page = 1
    while items := api.result("GET", path, params={"page": page}):
        yield from items
        page += 1
