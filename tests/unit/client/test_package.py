import types

import polyhead.client as package


def test_everything_in_all_is_there_and_everything_public_is_in_all() -> None:
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(package.__all__)
    assert len(package.__all__) == len(set(package.__all__))


def test_every_exception_of_the_tree_in_the_docstring_is_exported_in_its_place() -> None:
    """The drawn tree is the real one: each name one step deeper than its base."""
    lines = (package.errors.__doc__ or "").splitlines()
    drawn = [(line, line.lstrip("│├└─ ").split()[0]) for line in lines if line and line[0] in "│├└P" and "  " in line]
    bases: list[type] = [Exception]
    for line, name in drawn:
        depth = line.index(name) // 4
        kind = getattr(package, name)
        assert bases[depth] in kind.__bases__, name
        bases[depth + 1 :] = [kind]
    errors = {name for name in package.__all__ if isinstance(getattr(package, name), type)}
    assert {name for name in errors if issubclass(getattr(package, name), Exception)} == {name for _, name in drawn}
