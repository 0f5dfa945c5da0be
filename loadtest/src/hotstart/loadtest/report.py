"""The report that a person reads. Pure but for the console it is drawn on; `LoadResult.to_json` is that of programs."""

from hotstart.loadtest.durations import format_milliseconds
from hotstart.loadtest.machine import describe_machine
from hotstart.loadtest.result import LoadResult
from hotstart.loadtest.summary import Quantiles
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_report(result: LoadResult, console: Console) -> None:
    """Print the figures of `result`, the failures by reason, and above all whether the run may be believed."""
    if result.interrupted:
        console.print(
            f"[yellow]Interrupted: {result.summary.requests} of {len(result.plan.arrivals)} requests were sent.[/]"
        )
    _print_counts(result, console)
    _print_times(result, console)
    for reason, count in result.summary.failures.items():
        detail = result.summary.failure_details[reason]
        console.print(f"[red]{count} failed with {reason}[/]" + (f", such as: {escape(detail)}" if detail else ""))
    if result.void:
        console.print(f"[bold red]{escape(result.summary.void_reason)}[/]")
    machine = describe_machine()
    console.print(
        f"[dim]{result.started_at.isoformat(timespec='seconds')}, {machine['machine_cores']} cores "
        f"({escape(str(machine['machine_processor']))}), {machine['machine_system']}, Python {machine['python']}, "
        f"{result.processes} sending process{'es' if result.processes > 1 else ''}"
        f"{' with real-time priority' if result.realtime else ''}[/]"
    )


def _print_counts(result: LoadResult, console: Console) -> None:
    summary, plan = result.summary, result.plan
    console.print(f"[bold]{escape(plan.model)}[/] at {escape(plan.url)}{', streaming' if plan.stream else ''}")
    parts = [f"{summary.requests} requests", f"{summary.ok} ok", f"{summary.failed} failed"]
    if summary.cancelled:
        parts.append(f"{summary.cancelled} cancelled")
    if summary.unfinished:
        parts.append(f"{summary.unfinished} unfinished")
    console.print(", ".join(parts) + f" in {summary.duration_s:.1f} s")
    console.print(f"rate offered {summary.rate:.1f}/s, answered {summary.rate_achieved:.1f}/s")
    if summary.completion_tokens is not None and summary.duration_s > 0:
        console.print(
            f"{summary.completion_tokens} completion tokens, {summary.completion_tokens / summary.duration_s:.1f}/s"
        )
    if plan.slo_s is not None and summary.slo_attainment is not None:
        console.print(f"{summary.slo_attainment:.2%} within the SLO of {format_milliseconds(plan.slo_s)}")


def _print_times(result: LoadResult, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "P50", "P90", "P95", "P99", "max"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("latency (from the intended time)", *_cells(result.summary.latency))
    if result.plan.stream:
        table.add_row("first token", *_cells(result.summary.first_token))
    table.add_row("send drift", *_cells(result.summary.drift))
    console.print(table)


def _cells(quantiles: Quantiles) -> list[str]:
    values = (quantiles.p50, quantiles.p90, quantiles.p95, quantiles.p99, quantiles.max)
    return ["-" if value is None else format_milliseconds(value) for value in values]
