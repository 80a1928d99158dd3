"""Which folders become packages; everything else about the distribution stands in pyproject.toml.

`recipes/` is no Python, but users of an installed package need it: it ships as the data folder
`megatron_ext/_recipes`. In a checkout that folder does not exist and `recipes/` itself is read
(`megatron_ext/recipe/locate.py` knows both places).
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["megatron_ext*", "data_tools*"]), "megatron_ext._recipes"],
    package_dir={"megatron_ext._recipes": "recipes"},
    package_data={
        "megatron_ext._recipes": ["**/*.yaml", "**/*.md"],
        "megatron_ext.plan": ["*.jsonl"],
        "megatron_ext.study.page": ["templates/*"],
        "data_tools": ["chat_templates/*.jinja"],
    },
)
