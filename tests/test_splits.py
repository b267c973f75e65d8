"""Tables that go with their images; splits whose shares and patients can be counted; planted duplicates."""
import pandas as pd, pytest, torch

from tsynd.data import FACTORS, factor_table, ImageData, phantom, Split, subset


def with_table(n=10):
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(n)], patient=[i//3 for i in range(n)]))
    return Split(torch.arange(n).view(-1,1,1,1).to(torch.uint8).expand(-1,1,4,4).clone(), torch.arange(n)%2,
                 torch.arange(n), table)


# The table of a split

@pytest.mark.parametrize('pick', [[7,2,2], slice(3, 8), slice(0), slice(None, None, 3), torch.tensor([9,0]),
                                  torch.arange(10) > 6, torch.zeros(0, dtype=torch.int64)], ids=str)
def test_the_rows_of_a_selection_are_those_of_its_images(pick):
    part = with_table().select(pick)
    assert len(part.table) == len(part) and part.table.index.tolist() == list(range(len(part)))
    assert part.table.path.tolist() == [f'{i}.png' for i in part.index.tolist()]
    assert part.x[:,0,0,0].tolist() == part.index.tolist()
    assert part.new_empty().table.columns.tolist() == ['path','patient'] and not len(part.new_empty().table)

def test_a_table_of_any_index_gets_the_default_one():
    s = with_table()
    odd = Split(s.x, s.y, s.index, s.table.set_axis(range(5, 15)))
    data = ImageData('made', 'binary-class', ['a','b'], s, odd, s)
    assert data.val.table.equals(s.table) and odd.table.index[0] == 5

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_factors_are_columns(dtype):
    f = torch.rand(20, 8, dtype=dtype)
    s = Split(torch.zeros(20,1,4,4).byte(), torch.zeros(20).long(), torch.arange(20), factor_table(f))
    assert torch.equal(s.factors, f) and s.factors.dtype == dtype and s.factors.is_contiguous()
    assert torch.equal(s.select([4,1]).factors, f[[4,1]]) and len(s.new_empty().factors) == 0
    s.table = s.table.assign(patient=3)[['patient', *reversed(FACTORS)]]
    assert torch.equal(s.factors, f)                            # whatever the order of the columns
    s.table = s.table.drop(columns='phase')
    assert s.factors is None and with_table().factors is None

def test_a_subset_of_the_phantom_keeps_its_factors():
    data = phantom(40, 20, 10, size=12)
    small = subset(data, 10)
    assert torch.equal(small.train.factors, data.train.factors[small.train.index])
    small.train.factors.zero_()                                 # a copy, which changes nothing
    assert torch.equal(small.train.factors, data.train.factors[small.train.index])
