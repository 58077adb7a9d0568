"""YAML that comes from elsewhere: plain values, or one kind of error."""

from __future__ import annotations


class NoYaml(ValueError):
    """The text is no YAML that is read here; the message says why, beginning with what it holds or is."""


def load_yaml(text: str) -> object:
    """The values of a YAML text.

    Raises:
        NoYaml: it is none, or has references (`*name`): a few lines of them stand for more than any memory
            holds.
    """
    import yaml

    try:
        aliases = [e for e in yaml.parse(text) if isinstance(e, yaml.AliasEvent)] if "*" in text else []
        if not aliases:
            return yaml.safe_load(text)
    except RecursionError:
        raise NoYaml("is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise NoYaml("is not readable as YAML" + (f" (line {mark.line + 1})" if mark else "")) from error
    # a value that is not of the kind that it says, as `!!int x`
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise NoYaml("is not readable as YAML") from error
    raise NoYaml(f"holds a reference (*{aliases[0].anchor}), where values are written out")
