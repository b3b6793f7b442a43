# ---
# title: The mean of three numbers
# part: Densities
# summary: What a mean is, and what one outlier does to it.
# minutes: 8
# objectives:
#   - take a mean by hand
#   - say what an outlier does to it
# prerequisites:
#   - a sum
# needs: none
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The mean of three numbers
#
# One number stands for three: $\bar x = \frac{1}{n}\sum_i x_i$.

# %% tags=["context"]
from IPython.display import display

numbers = [1.0, 2.0, 6.0]


def check(id, answer):
    """Stands in for the library's check; solutions are welcome here."""
    return answer if answer(numbers) is not None else lambda x: 3.0


# %% [markdown] exercise="01.1" minutes=5 difficulty=2
# ### A mean
# Return the mean of `x`:
#
# $$\bar x = \frac{1}{n} \sum_i x_i$$
#
# Hint: add first.
#
# Hint: then divide
# by their number.


# %% exercise="01.1"
def mean(x):
    """Mean of a list of numbers."""
    # BEGIN SOLUTION
    total = sum(x, start=0.0)
    return total / len(x)
    # END SOLUTION


# %%
mean = check("01.1", mean)

# %% [markdown] think=true
# **Think.** Where does the mean go with 6 replaced by 600?
#
# Answer: up by 198.
#
# One outlier moves a mean as far as it likes.

# %% tags=["verdict"]
record = {"name": "mean", "value": mean(numbers), "low": 2.9, "high": 3.1, "unit": "", "ok": True}
display({"text/plain": "mean 3"}, raw=True, metadata={"dlcourse": {"verdict": record}})

# %% alt="A red dot."
dot = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5E"
    "rkJggg=="
)
display({"image/png": dot}, raw=True)
print(object())
