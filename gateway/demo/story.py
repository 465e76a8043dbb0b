"""`lorikeet demo`: the main job, told through the public HTTP API, with every printed claim checked.

Two accounts, three adapters, one base. Each step is one function; what a step learns goes into `Scene`.
"""

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gateway.demo import ADAPTERS_FOLDER, QUESTIONS_FILE, show
from gateway.demo.api import Account, Answer, Api, CallFailed
from gateway.demo.checks import Checks
from gateway.demo.refusals import try_refusals
from gateway.demo.stack import DemoFailed, Served, run_command, serve

NUM_QUESTIONS = 8
LEAST_EXACT = 0.9  # what the model card promises of held-out questions
LOGS = "/ai-gateway/gateways/default/logs"


@dataclass
class Scene:
    """What the steps share. `askers` lists (column, account, lora): the base is asked by the first account."""

    console: Console
    checks: Checks
    served: Served
    accounts: list[Api]
    descriptions: dict[str, str]
    questions: list[dict[str, Any]]
    owners: dict[str, Api] = field(default_factory=dict)
    finetunes: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)


async def play(console: Console) -> int:
    """Runs the demo; the exit code is 0 when every claim held. Prints as it goes."""
    checks, began = Checks(console), time.perf_counter()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="lorikeet-demo-") as folder,
            _busy(console, "Starting gateway and runtime") as starting,
        ):
            async with serve(Path(folder) / "data") as served:
                starting.stop()
                await _tell(console, checks, served, Path(folder))
    except (DemoFailed, CallFailed, httpx.HTTPError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}", highlight=False)
        return 1
    show.verdict(console, checks, time.perf_counter() - began)
    return 1 if checks.failed else 0


async def _tell(console: Console, checks: Checks, served: Served, folder: Path) -> None:
    script = json.loads(QUESTIONS_FILE.read_text(encoding="utf-8"))
    async with httpx.AsyncClient(base_url=served.url, timeout=60.0) as http:
        scene = Scene(
            console=console,
            checks=checks,
            served=served,
            accounts=[],
            descriptions={name: about["description"] for name, about in script["adapters"].items()},
            questions=_spread(script["questions"], list(script["adapters"])),
        )
        show.started(console, served)
        await _accounts_and_adapters(scene, http)
        await _ask_everyone(scene)
        await _tiers(scene)
        await try_refusals(console, checks, http, scene.accounts, scene.finetunes, scene.owners)
        await _logs(scene, folder)


def _spread(questions: list[dict[str, Any]], adapters: list[str]) -> list[dict[str, Any]]:
    """A few questions: for each adapter two where it differs from the base, then others, evenly spread."""
    chosen: list[dict[str, Any]] = []
    for name in adapters:
        shows = [q for q in questions if name in q["answers"] and q["answers"][name] != q["answers"].get("base")]
        chosen += [q for q in (*shows[:1], *shows[-1:]) if q not in chosen]
    others = [q for q in questions if q not in chosen]
    missing = max(NUM_QUESTIONS - len(chosen), 0)
    return chosen + [others[index * len(others) // max(missing, 1)] for index in range(missing)]


async def _accounts_and_adapters(scene: Scene, http: httpx.AsyncClient) -> None:
    scene.console.rule("[bold]1  Two accounts, three adapters", align="left")
    with _busy(scene.console, "lorikeet accounts create, lorikeet tokens create"):
        async with asyncio.TaskGroup() as group:
            accounts = [group.create_task(_account(scene, http, name)) for name in ("acme", "globex")]
    scene.accounts += [account.result() for account in accounts]
    for index, name in enumerate(scene.descriptions):
        owner = scene.accounts[index % len(scene.accounts)]
        scene.owners[name] = owner
        scene.finetunes[name] = await owner.create_finetune(name, scene.descriptions[name])
        await owner.upload_folder(scene.finetunes[name], ADAPTERS_FOLDER / name)
        details = await owner.result("GET", f"/ai/finetunes/{scene.finetunes[name]}")
        scene.checks.expect(details["status"] == "ready", f"adapter {name} is ready after its upload")
        show.adapter(scene.console, owner.account.name, name, details, scene.descriptions[name])


async def _account(scene: Scene, http: httpx.AsyncClient, name: str) -> Api:
    """A new account with a token, made by the operator's commands."""
    data_dir = scene.served.data_dir
    account = await run_command(data_dir, "accounts", "create", name)
    token = await run_command(data_dir, "tokens", "create", account["id"], "--name", "demo")
    return Api(http, Account(name, account["id"], token["token"]))


async def _ask_everyone(scene: Scene) -> None:
    scene.console.rule("[bold]2  The same questions to the base and to every adapter, at once", align="left")
    columns = ["base", *scene.descriptions]
    began = time.perf_counter()
    with _busy(scene.console, f"{len(columns) * len(scene.questions)} streams"):
        async with asyncio.TaskGroup() as group:
            tasks = {
                column: [
                    group.create_task(
                        scene.owners.get(column, scene.accounts[0]).ask(
                            question["question"], None if column == "base" else column
                        )
                    )
                    for question in scene.questions
                ]
                for column in columns
            }
    seconds = time.perf_counter() - began
    scene.answers = {column: [task.result() for task in asked] for column, asked in tasks.items()}
    show.answers(scene.console, scene.questions, scene.answers)
    for column in columns:
        expected = [
            (question["answers"][column], answer.text.strip())
            for question, answer in zip(scene.questions, scene.answers[column], strict=True)
            if column in question["answers"]
        ]
        exact = sum(want == got for want, got in expected)
        scene.checks.expect(bool(expected), f"there are answers of {column} to check")
        scene.checks.expect(
            exact >= LEAST_EXACT * len(expected) - 0.5,
            f"{column} answers as taught ({exact} of {len(expected)})",
        )
    tokens = sum(answer.completion_tokens for asked in scene.answers.values() for answer in asked)
    scene.checks.expect(tokens > 0, "usage was reported")
    batch = await _largest_batch(scene)
    show.throughput(scene.console, tokens, seconds, batch)
    scene.checks.expect(batch["batch_adapters"] >= 2, "one decode batch mixed several adapters")
    scene.checks.expect(batch["batch_accounts"] == 2, "one decode batch mixed both accounts")


async def _largest_batch(scene: Scene) -> dict[str, int]:
    """The largest batch figures over the logs of the answers just given."""
    largest = {"batch_rows": 0, "batch_adapters": 0, "batch_accounts": 0}
    for account in scene.accounts:
        mine = [
            answer.log_id
            for column, asked in scene.answers.items()
            for answer in asked
            if scene.owners.get(column, scene.accounts[0]) is account
        ]
        for row in await asyncio.gather(*(account.result("GET", f"{LOGS}/{log_id}") for log_id in mine)):
            for name in largest:
                largest[name] = max(largest[name], row["timings"][name])
    return largest


async def _tiers(scene: Scene) -> None:
    scene.console.rule("[bold]3  Each adapter's way through the tiers", align="left")
    ways = {}
    for name, owner in scene.owners.items():
        details = await owner.result("GET", f"/ai/finetunes/{scene.finetunes[name]}")
        ways[name] = details["residency"]
        tiers = [leg["tier"] for leg in ways[name]["path"]]
        scene.checks.expect(
            tiers == ["object", "disk", "memory", "device"],
            f"{name} came all the way up ({tiers})",
        )
    show.tiers(scene.console, ways)


async def _logs(scene: Scene, folder: Path) -> None:
    scene.console.rule("[bold]5  Logs, feedback, and a fine-tuning dataset", align="left")
    account = scene.accounts[0]
    mine = [(c, q, a) for c, asked in scene.answers.items() if scene.owners.get(c, account) is account
            for q, a in zip(scene.questions, asked, strict=True)]  # fmt: skip
    rows = await account.result("GET", LOGS, params={"per_page": 50})
    scene.checks.expect({a.log_id for _, _, a in mine} <= {row["id"] for row in rows}, "every answer has its log row")
    foreign = {a.log_id for c, asked in scene.answers.items() if scene.owners.get(c, account) is not account
               for a in asked}  # fmt: skip
    scene.checks.expect(not foreign & {row["id"] for row in rows}, "no log of the other account is listed")
    show.logs(scene.console, account.account.name, rows[:6], len(rows))
    marked = mine[:1] + mine[-1:]
    for _, _, answer in marked:
        row = await account.result("PATCH", f"{LOGS}/{answer.log_id}", json={"feedback": 1})
        scene.checks.expect(row["feedback"] == 1, "feedback is kept")
    reply = await account.call("GET", f"{LOGS}/export", params={"format": "openai_chat", "feedback": 1})
    path = folder / "dataset.jsonl"
    path.write_bytes(reply.content)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [{"role": "user", "content": q["question"]} for _, q, _ in marked]
    said = [answer.text for _, _, answer in marked]
    scene.checks.expect(
        sorted((line["messages"][0]["content"], line["messages"][-1]["content"]) for line in lines)
        == sorted((message["content"], text) for message, text in zip(wanted, said, strict=True)),
        "the export holds exactly the two marked exchanges, word for word",
    )
    show.dataset(scene.console, path)


def _busy(console: Console, what: str) -> Progress:
    """A spinner with a clock; where nothing can spin, a line."""
    if not console.is_terminal:
        console.print(f"{what} ...")
    progress = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )
    progress.add_task(what, total=None)
    return progress
