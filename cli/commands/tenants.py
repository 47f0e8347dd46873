"""slosctl tenants: who may ask, with which weight and default class."""

from __future__ import annotations

import click

from cli.output import done, json_option, print_json, print_table, to_dict
from cli.rpc import Target, connect
from protos.slos.v1 import admin_pb2, common_pb2


@click.group()
def tenants() -> None:
    """See and change tenants."""


@tenants.command()
@json_option
@click.pass_obj
def ls(target: Target, as_json: bool) -> None:
    """List all tenants."""
    with connect(target) as connection:
        known = connection.call(connection.admin.ListTenants, admin_pb2.ListTenantsRequest()).tenants
    if as_json:
        print_json([to_dict(tenant) for tenant in known])
        return
    rows = [[tenant.name, f"{tenant.weight:g}", tenant.default_class] for tenant in known]
    print_table(["TENANT", "WEIGHT", "DEFAULT CLASS"], rows, empty="No tenant is stored.")


@tenants.command("set")
@click.argument("name")
@click.option("--weight", type=click.FloatRange(min=0, min_open=True), help="Multiplies the value of its requests.")
@click.option("--default-class", help="Class of requests that name none.")
@json_option
@click.pass_obj
def set_tenant(target: Target, name: str, weight: float | None, default_class: str | None, as_json: bool) -> None:
    """Create tenant NAME, or change the given settings of it."""
    with connect(target) as connection:
        known = connection.call(connection.admin.ListTenants, admin_pb2.ListTenantsRequest()).tenants
        wanted = common_pb2.Tenant(name=name, weight=1.0, default_class="chatbot")
        for tenant in known:
            if tenant.name == name:
                wanted.CopyFrom(tenant)
        if weight is not None:
            wanted.weight = weight
        if default_class is not None:
            wanted.default_class = default_class
        answer = connection.call(connection.admin.SetTenant, admin_pb2.SetTenantRequest(tenant=wanted))
    if as_json:
        print_json(to_dict(answer))
    else:
        click.echo(f"{answer.name}: weight {answer.weight:g}, default class {answer.default_class}")


@tenants.command()
@click.argument("name")
@json_option
@click.pass_obj
def rm(target: Target, name: str, as_json: bool) -> None:
    """Remove a tenant."""
    with connect(target) as connection:
        connection.call(connection.admin.RemoveTenant, admin_pb2.RemoveTenantRequest(name=name))
    done(as_json, "removed", name)
