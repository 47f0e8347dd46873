"""`make evaluation-quick`: the whole pipeline on a small grid."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scheduling.registry import POLICIES
from simulation import cache
from simulation.cache import ENTRY, modules, version
from simulation.config import Lengths
from simulation.evaluation import document, numbers, published
from simulation.evaluation.__main__ import fill
from simulation.evaluation.behaviour import behaviour
from simulation.evaluation.book import BEHAVIOURS, Book
from simulation.evaluation.capacity_tables import capacity_missing
from simulation.evaluation.findings import findings
from simulation.evaluation.fleet_tables import equal_gpus_section, pairs_section
from simulation.evaluation.jobs import Effort, Fleet, Probe, Search, code_now, made_of
from simulation.evaluation.sections import SECTIONS, Job, Scope, equal_gpus, extras, pairs, stages
from simulation.evaluation.settings import GRIDS, TUNED, candidates, tuned


@pytest.mark.timeout(900)
def test_the_quick_evaluation_writes_a_document_with_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulation.evaluation", "--quick", "--out", str(tmp_path)]
    command += ["--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "evaluation.md").read_text()
    for heading in (
        "Capacity at 90 %",
        "The paper's own conditions",
        "How close to a published measurement",
        "Not run yet",
        "A burst",
        "Are promises kept?",
        "What is simulated",
    ):
        assert heading in text
    for figure in ("capacity-a100-opt-13b-kv-1.svg", "burst.svg"):
        assert f"figures/{figure}" in text
        assert (tmp_path / "figures" / figure).stat().st_size > 5_000
    again = [sys.executable, "-m", "simulation.evaluation", "--render", "--out", str(tmp_path)]
    subprocess.run(again, capture_output=True, timeout=200, check=True)
    assert (tmp_path / "evaluation.md").read_text() == text
    rows = json.loads((tmp_path / "evaluation.json").read_text())["capacity"]
    assert {(r["scenario"], r["policy"]) for r in rows} == {
        (s, p) for s in ("chatbot", "coding") for p in ("vllm-v1", "qoserve", "slos")
    }
    table = numbers.capacity_table(rows, "a100-opt-13b-kv", 1)
    assert table["chatbot"]["slos"] > table["chatbot"]["vllm-v1"]


def test_ratios_and_geometric_means() -> None:
    rows = [
        {"profile": "p", "asked_replicas": 1, "scenario": scenario, "policy": policy, "rate_per_gpu": rate}
        for scenario, policy, rate in (
            ("a", "vllm", 1.0), ("a", "sarathi", 2.0), ("a", "slos", 4.0), ("a", "slos", 8.0),
            ("b", "vllm", 3.0), ("b", "slos", 3.0),
        )
    ]  # fmt: skip
    table = numbers.capacity_table(rows, "p", 1)
    assert table["a"]["slos"] == 6.0
    assert numbers.ratios(table["a"]) == {"vllm": 0.5, "sarathi": 1.0, "slos": 3.0}
    assert numbers.over(table, "slos", ("vllm", "sarathi"), ("a", "b")) == pytest.approx(math.sqrt(3.0))
    assert math.isnan(numbers.over(table, "sarathi", ("vllm",), ("a", "b")))
    assert numbers.spread(rows, "p", "slos", "a") == (4.0, 8.0)
    assert numbers.spread(rows, "p", "vllm", "a") is None


def test_every_tuned_setting_is_one_the_search_could_choose() -> None:
    known = json.loads(TUNED.read_text())
    assert known
    for key in known:
        policy, profile, scenario = key.split("/")
        setting = tuned(policy, profile, scenario)
        assert policy in GRIDS
        assert (setting.options, setting.ratio) in [(c.options, c.ratio) for c in candidates(policy)]


def test_a_ratio_makes_clusters_of_whole_groups() -> None:
    setting = next(c for c in candidates("distserve") if c.ratio == (2, 1))
    for asked, replicas, prefill in ((1, 3, 2), (4, 6, 4), (6, 6, 4)):
        cluster = setting.cluster(asked)
        assert (cluster.replicas, cluster.prefill_replicas) == (replicas, prefill)


def test_simulated_vllm_and_distserve_compare_as_published() -> None:
    alone, prefill, apart = (row["simulated"] / row["published"] for row in published.rows(600))
    # Rates without the host's work between iterations: too high, but all by nearly the same factor.
    assert all(1.0 <= quotient <= 1.75 for quotient in (alone, prefill, apart))
    assert apart / alone == pytest.approx(1.0, abs=0.2)
    assert prefill / alone == pytest.approx(1.0, abs=0.2)


def test_losses_and_ties_are_all_named() -> None:
    rates = {"vllm": 1.0, "qoserve": 2.0, "distserve": 3.0, "slos": 2.04}
    rows = [
        {"profile": "p", "asked_replicas": 1, "scenario": "chatbot", "policy": policy, "rate_per_gpu": rate}
        for policy, rate in rates.items()
    ]
    text = findings({"capacity": rows})
    assert "loses to distserve in chatbot, p, 1 replica: 0.68x" in text
    assert "ties with qoserve in chatbot, p, 1 replica: 1.02x" in text
    assert "vllm in" not in text
    assert "not known" in findings({})
    assert "nowhere in the 1 cells" in findings({"capacity": [rows[0], {**rows[3], "rate_per_gpu": 2.0}]})


def test_what_replicas_carry_together_is_a_multiple_of_what_one_does() -> None:
    def row(scenario: str, replicas: int, rate: float) -> dict[str, object]:
        return {
            "profile": "p",
            "asked_replicas": replicas,
            "scenario": scenario,
            "policy": "slos",
            "rate_per_gpu": rate,
        }

    rows = [row("chatbot", 1, 2.0), row("chatbot", 4, 2.5), row("coding", 1, 1.0), row("coding", 4, 5.0)]
    text = findings({"capacity": [*rows, row("mixed", 4, 3.0)]})
    assert "* p, 4 replicas: chatbot 5.0, coding 20.0; geo-mean of these 10.0" in text
    assert "not known: slos was not run on one replica and on several" in findings({"capacity": rows[:1]})


def test_the_first_stage_answers_the_first_question_and_every_section_has_a_stage() -> None:
    scope = Scope()
    order = stages(scope)
    first_name, first_scope = order[0]
    first = SECTIONS[first_name](first_scope, {})
    assert {(j.search.profile, j.search.replicas, j.search.seed) for j in first} == {(scope.profiles[0], 1, 0)}
    assert {name for name, _ in order} == {"burst", "published", *SECTIONS}
    whole = {str(job.row) for name, part in order if name == "capacity" for job in SECTIONS[name](part, {})}
    assert whole == {str(job.row) for job in SECTIONS["capacity"](scope, {})}


def test_rows_are_kept_at_once_and_replaced_by_cell(tmp_path: Path) -> None:
    row = {"policy": "slos", "profile": "p", "scenario": "chatbot", "asked_replicas": 1, "seed": 0, "rate_per_gpu": 1.0}
    book = Book(tmp_path)
    book.add("capacity", row)
    book.add("capacity", {**row, "seed": 1})
    book.add("capacity", {**row, "rate_per_gpu": 2.0})
    assert Book(tmp_path).known == {"capacity": [{**row, "rate_per_gpu": 2.0}, {**row, "seed": 1}]}
    missing = "\n".join(capacity_missing([{**row, "profile": "a100-opt-7b"}]))
    assert "three seeds" in missing
    assert "--profile a100-opt-13b-kv --replicas 1" in missing
    assert "--profile a100-opt-7b --replicas 1" not in missing
    assert "47 of 48 cells of a100-opt-7b, 1 replica" in missing


def test_baselines_do_not_depend_on_the_code_of_slos() -> None:
    ours = {
        "scheduling/policies/slos.py",
        "scheduling/admission.py",
        "scheduling/batching.py",
        "scheduling/kernels/step.py",
    }
    assert ours <= modules(POLICIES["slos"]).keys()
    for policy in GRIDS:
        assert not ours & (modules(POLICIES[policy]).keys() | modules(ENTRY).keys()), policy


def test_only_rows_that_no_longer_hold_are_computed_again(tmp_path: Path) -> None:
    effort = Effort(None, str(tmp_path / "cache"), slice_s=10.0, quiet=True)
    jobs = [Job(Probe(Search(policy, "a100-opt-7b", "chatbot"), 0.5)) for policy in ("vllm-v1", "sarathi")]
    book = Book(tmp_path)
    fill(book, "precision", jobs, effort)
    rows = book.known["precision"]
    assert [row["policy"] for row in rows] == ["vllm-v1", "sarathi"]
    assert all(book.holds("precision", job.row, made_of(job.work, effort)) for job in jobs)
    assert document.older(book, rows) == ""

    for row in rows:
        row["made_of"] = {**row["made_of"], "policy": f"older {row['policy']}"}
        row["attained"] = -1.0
    # What the older code of vllm-v1 did is known, and is what the new one does; that of sarathi did something else.
    did = {f"older vllm-v1/{version(ENTRY)}": behaviour("vllm-v1"), f"older sarathi/{version(ENTRY)}": "else"}
    (tmp_path / "evaluation.json").write_text(json.dumps({"precision": rows, BEHAVIOURS: did}))
    book = Book(tmp_path)
    assert document.older(book, rows).endswith("decisions last changed: sarathi in chatbot.*\n")
    fill(book, "precision", jobs, effort)
    assert {row["policy"] for row in book.known["precision"] if row["attained"] == -1.0} == {"vllm-v1"}
    assert document.older(book, book.known["precision"]) == ""
    kept = Book(tmp_path)
    assert kept.behaves(rows[0], rows[0]["made_of"], code_now(rows[0]))
    assert [row["policy"] for row in kept.known["precision"]] == ["vllm-v1", "sarathi"]

    at_another_rate = [Job(Probe(job.search, 0.6)) for job in jobs]
    assert not any(book.holds("precision", j.row, made_of(j.work, effort)) for j in at_another_rate)
    of_before = [{k: v for k, v in row.items() if k != "made_of"} for row in rows]
    assert "vllm-v1 in chatbot, sarathi in chatbot" in document.older(book, of_before)
    fill(book, "precision", jobs, effort, again=True)
    assert all(row["attained"] >= 0.0 for row in book.known["precision"])


def test_what_another_section_found_by_the_same_run_is_not_computed_again(tmp_path: Path) -> None:
    effort = Effort(None, str(tmp_path / "cache"), slice_s=10.0, quiet=True)
    search = Search("vllm-v1", "a100-opt-7b", "chatbot")
    book = Book(tmp_path)
    fill(book, "precision", [Job(Probe(search, 0.5), {"noise": 0.0})], effort)
    book.known["precision"][0]["attained"] = -1.0
    stated = replace(search, changes=(("lengths", Lengths.QUANTILE),))
    jobs = [Job(Probe(stated, 0.5)), Job(Probe(replace(stated, seed=1), 0.5))]
    fill(book, "lengths", jobs, effort)
    same, other = book.known["lengths"]
    assert (same["attained"], same["changes"], same.get("noise")) == (-1.0, {"lengths": "quantile"}, None)
    assert other["attained"] >= 0.0
    assert all(book.holds("lengths", job.row, made_of(job.work, effort)) for job in jobs)

    book.known["precision"][0]["made_of"] = {**same["made_of"], "policy": "older"}
    fill(book, "scale", jobs[:1], effort)
    assert book.known["scale"][0]["attained"] == -1.0  # from the other section that holds
    book.known["lengths"], book.known["scale"] = [], []
    fill(book, "scale", jobs[:1], effort)
    assert book.known["scale"][0]["attained"] >= 0.0


def test_behaviours_are_equal_for_equal_decisions_alone() -> None:
    assert behaviour("vllm-v1") == behaviour("vllm-v1")
    assert behaviour("slos", learns_margin=True) != behaviour("dp", learns_margin=True)


def test_rows_with_speculation_have_reference_runs_of_their_own(tmp_path: Path) -> None:
    plain = Job(Search("sarathi", "a100-opt-7b", "chatbot")).row
    speculating = Job(Search("sarathi", "a100-opt-7b", "chatbot", changes=(("speculation", True),))).row
    now = code_now(plain)
    older = {**now, "policy": "older"}
    # What the older code did is known for the one kind, and says nothing about rows of the other.
    did = {f"older/{now['simulator']}": behaviour("sarathi")}
    (tmp_path / "evaluation.json").write_text(json.dumps({BEHAVIOURS: did}))
    book = Book(tmp_path)
    assert book.behaves(plain, older, now)
    assert not book.behaves(speculating, older, now)
    assert book.behaviour(plain, now) == behaviour("sarathi")
    assert book.behaves(speculating, now, now)


def test_everybody_gets_the_gpus_of_distserves_best_ratio(tmp_path: Path) -> None:
    jobs = equal_gpus(Scope(("a100-opt-13b-kv",), ("coding", "mixed")), {})
    assert {(j.search.scenario, j.search.replicas) for j in jobs} == {("coding", 3), ("mixed", 2)}
    for job in jobs:
        cluster = job.search.spec(Effort(None, "")).cluster
        assert cluster.replicas == job.search.replicas
    rows = [{**job.row, "rate_per_gpu": 2.0 if job.search.policy == "slos" else 1.0, "tuned": True} for job in jobs]
    text = equal_gpus_section(rows, tmp_path)
    assert "| coding (3) |" in text
    assert "2.00x" in text


def test_baselines_verify_as_many_tokens_as_carry_most(tmp_path: Path) -> None:
    jobs = extras(Scope(("a100-opt-13b-kv",), ("coding",), ("qoserve", "slos")), {})
    clusters = [job.search.spec(Effort(None, "")).cluster for job in jobs]
    assert all(cluster.prefix_cache for cluster in clusters)
    verified = [(c.policy, c.speculation, dict(c.policy_options).get("spec_tokens")) for c in clusters]
    assert verified == [("slos", True, None), *(("qoserve", n > 1, n if n > 1 else None) for n in (1, 4, 2))]
    rates = (4.0, 2.0, 1.0, 1.5)
    rows = [{**job.row, "rate_per_gpu": rate, "tuned": True} for job, rate in zip(jobs, rates, strict=True)]
    text = document._extras(rows, tmp_path)
    assert "| 2.000 | 4.000 |" in text


def test_fleets_of_pairs_are_compared_with_distserve_at_its_best(tmp_path: Path) -> None:
    jobs = pairs(Scope(("a100-opt-13b-kv",), ("chatbot", "tool-calling")), {})
    assert jobs[0].search.scenario == "tool-calling"
    assert all(dict(job.search.changes)["prefix_cache"] for job in jobs)
    fleets = {(j.search.policy, str(j.search.fleet)) for j in jobs}
    assert {("distserve", "2:1"), ("slos", "2:1"), ("slos", "1:1 + 1 co-located"), ("slos", "3 co-located")} <= fleets
    cluster = Search("distserve", "a100-opt-13b-kv", "coding", fleet=Fleet(1, 2, 0)).spec(Effort(None, "")).cluster
    assert (cluster.replicas, cluster.prefill_replicas, cluster.colocated_replicas) == (3, 1, 0)
    rates = {("distserve", "1:1"): 1.0, ("distserve", "2:1"): 2.0, ("slos", "2:1"): 3.0}
    rows = [
        {**job.row, "rate_per_gpu": rates.get((job.search.policy, str(job.search.fleet)), 0.5)}
        for job in jobs
        if job.search.scenario == "tool-calling"
    ]
    text = pairs_section(rows, tmp_path)
    assert "| slos | 2:1 | 1.50x | 1.50x |" in text
    assert "| slos | 1:1 | 0.25x | 0.25x |" in text


def test_comments_and_docstrings_make_no_row_older() -> None:
    written = (
        '"""A module."""\nfrom math import inf\n\n\ndef double(x: int) -> int:\n    """Twice."""\n    return 2 * x\n'
    )
    bare = "from math import inf\n\ndef double(x: int) -> int:\n    # as it was\n    return 2 * x\n"
    assert cache._code(written) == cache._code(bare)
    assert cache._code(written) != cache._code(written.replace("2 * x", "3 * x"))
    assert cache._code('"""Nothing else."""') == cache._code("pass")
